"""What people look at, predicted from patch tokens by a small decoder: a dense task."""
