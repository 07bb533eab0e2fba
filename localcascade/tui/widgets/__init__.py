"""What the screens are made of; widgets take plain data and post messages."""
