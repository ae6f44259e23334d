"""What a compressed student must keep: grids, masks and shapes, and the guard that keeps them."""
