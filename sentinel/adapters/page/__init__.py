"""The status page: the fleet at `/`, a device at `/devices/{profile}/{device}`, each live where it is asked for as events.

It is shown immutable views and asks for what it needs; it answers from the HTTP thread, whom the reactor never waits for.
"""

from sentinel.adapters.page.routes import Ask, Page
from sentinel.adapters.page.views import Alerts, Course, Detail, Fleet, Key, ProfileRows, Tick, Values

__all__ = ["Alerts", "Ask", "Course", "Detail", "Fleet", "Key", "Page", "ProfileRows", "Tick", "Values"]
