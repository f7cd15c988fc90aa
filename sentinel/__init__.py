"""Sentinel: streaming anomaly detection for fleets of IoT devices."""

__version__ = "0.1.0"
