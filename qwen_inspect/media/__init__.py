"""What a model's processor makes of images and videos: sizes, grids and tokens, without an image library."""
