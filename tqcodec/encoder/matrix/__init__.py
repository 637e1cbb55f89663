"""What is done to one weight matrix; nothing here knows the network that it belongs to."""
