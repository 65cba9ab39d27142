"""Real drone imagery of 13 cm with labels of OpenStreetMap: how well the tools learn, in numbers."""
