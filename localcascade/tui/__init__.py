"""The chat in the terminal: one file per screen with its stylesheet, widgets that only draw."""
