"""Replays of racing on sweeps that ran to their ends: what stopping trials early would have saved and cost."""
