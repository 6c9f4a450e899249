"""The client's side: its files, the environment that puts them in front of a program, and checks of both."""
