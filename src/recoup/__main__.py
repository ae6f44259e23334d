"""`python -m recoup`, for `accelerate launch -m recoup run …`."""

from recoup.cli import main

if __name__ == "__main__":
    main()
