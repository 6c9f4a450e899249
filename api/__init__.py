"""What is remoted: data and declarations only."""
