"""The probe of a rank's own record."""
