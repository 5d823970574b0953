"""The same as `objectstore.auth_tokens`, by its name in version 0.2.0."""

from objectstore.auth_tokens import main

if __name__ == "__main__":
    main()
