"""The words by which usage is grouped: what callers of the usage report say."""

from enum import StrEnum


class Dimension(StrEnum):
    """What usage can be grouped by."""

    # Columns of the usage event, the key by its id; and the hour and the day in which the request ended.
    TENANT = "tenant"
    MODEL = "model"
    PROJECT = "project"
    KEY = "key"
    CLASS = "class"
    CONTRACT = "contract"
    HOUR = "hour"
    DAY = "day"
