"""Chinese, as an engineer there would write it: a module for each subject."""
