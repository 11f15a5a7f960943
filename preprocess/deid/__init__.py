"""De-identification: headers, pixels and text with one keyed pseudonym and one date shift a patient."""
