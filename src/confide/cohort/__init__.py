"""What sums of every kind need: who is who, what a server takes, what may leave again after a crash, sealed parcels."""
