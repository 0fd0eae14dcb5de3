// What the module was compiled from, by the digest of kernels/native_sources.py.
#pragma once

namespace saccade {

const char* source_digest();

}  // namespace saccade
