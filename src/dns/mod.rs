//! DNS for the application: names of the mesh are answered, the rest is forwarded and cached.
