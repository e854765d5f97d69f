"""The book's figures, from data frames: the shared look, and a file for each chapter that draws."""

# Inside the rendered page the builder turns these two into the theme's text and background.
INK, PAPER = "#1f2328", "#fefefe"
