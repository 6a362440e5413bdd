"""What a model's processor makes of images, videos and audio: sizes, grids and tokens, without a library of images or sound."""
