from banlib.cli import main

main()
