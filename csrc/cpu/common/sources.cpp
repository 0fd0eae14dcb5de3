// A file of its own, so that a change of any source compiles no other file anew.
#include "saccade/sources.h"

namespace saccade {

const char* source_digest() {
  return SACCADE_SOURCES;
}

}  // namespace saccade
