"""The live front: tiles of the operator's sources and a model's masks of them, over HTTP; and folders on a map."""
