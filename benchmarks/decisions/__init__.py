"""Release rounds whose truth is known: how often gate, shadow comparison and live experiment are wrong together."""
