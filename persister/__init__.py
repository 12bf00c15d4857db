"""Drains the event log into PostgreSQL. Its own process, any number of them."""
