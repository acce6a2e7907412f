"""What the records say: tables, statistics, claims, comparison, figures and the report's page."""
