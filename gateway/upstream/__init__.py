"""HTTP out: connections to engines, and what their errors mean."""
