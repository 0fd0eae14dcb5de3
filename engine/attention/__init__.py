"""Attention methods: one readable file per method, composed of the kernel floor's ops."""
