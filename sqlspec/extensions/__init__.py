"""What web frameworks need: sessions for requests, and pages for operators."""
