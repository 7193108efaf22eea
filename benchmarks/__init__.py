"""Side by side with what people would use instead; each benchmark prints one JSON object as its last line."""


class CannotMeasure(Exception):
    """Something without which there is no result; the benchmark says it and fails."""
