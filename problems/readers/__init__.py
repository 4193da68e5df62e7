"""Instance files of other people, each format in one file."""
