"""NIR graphs: read as networks, and written from them."""
