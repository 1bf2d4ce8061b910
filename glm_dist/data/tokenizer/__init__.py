"""Text to ids and back: SentencePiece and Hugging Face vocabularies, special tokens."""
