"""The engine floor: requests, pages, models and attention methods. Imports only `kernels`."""
