"""What tests share: real servers and clients, and places to run them."""
