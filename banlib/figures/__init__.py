"""The book's figures, from data frames: the shared look, and a file for each chapter that draws."""
