"""What people look at: tables and figures. No torch here."""
