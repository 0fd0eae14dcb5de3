"""The layers that models are made of, over packed weights and the kernel floor's ops."""
