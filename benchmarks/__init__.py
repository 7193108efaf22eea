"""Side by side with what people would use instead; each benchmark prints one JSON object as its last line."""
