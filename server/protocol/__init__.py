"""The shapes of requests, replies and refusals, as OpenAI and vLLM write them."""
