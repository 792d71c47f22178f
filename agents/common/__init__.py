"""What the trainers are made of: networks, optimizer, diffusion policy, random streams."""
