"""Tables, figures, pages and exports of records."""
