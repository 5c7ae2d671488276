"""Weights in the formats of others: OpenAI's numbered arrays and Hugging Face's folders."""
