"""`tokenpass check`: facts and speed of a model beside a baseline, for continuous integration."""
