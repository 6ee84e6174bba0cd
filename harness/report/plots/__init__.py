"""Pictures of a report; private to `report`."""
