"""From MQTT messages to readings. No bytes on any topic raise an exception here (invariant 7)."""

from sentinel.stream.decode.decoder import Decoded, Decoder, Refusal
from sentinel.stream.decode.edges import Edges, measures
from sentinel.stream.decode.topics import Template

__all__ = ["Decoded", "Decoder", "Edges", "Refusal", "Template", "measures"]
