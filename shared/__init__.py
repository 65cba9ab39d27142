"""What every room uses: tiles, tile sets, images, features, configuration, errors. It imports no room."""
