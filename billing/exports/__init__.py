"""What is recorded, in the forms that other systems of billing and finance take."""
