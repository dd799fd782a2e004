// Opening a bundle: the container, then the signature, then the variant, then the encryption; no member is used before.
//
// A manifest is read once, and what was verified is what is parsed: a file that changes meanwhile changes nothing.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "container.hpp"
#include "failure.hpp"
#include "file.hpp"
#include "keys.hpp"
#include "manifest.hpp"
#include "sealing.hpp"

namespace whet::internal {

// Names of members.
inline const std::string kLibrary = "lib.so", kWeights = "weights.safetensors", kPacked = "weights.packed",
                         kManifest = "manifest.json", kSealedManifest = "manifest.sealed", kSignature = "signature";
constexpr const char* kNoChecksum = "does not have its checksum (sha256)";

using Members = std::map<std::string, Stored>;

// One bundle, in a file of its own or as a variant of a fat one; or the whole of a fat one. Every complaint names the
// file and the member.
struct Part {
  // What errors call it.
  std::string source;
  // Where its members lie, at the places that `members` gives; of an encrypted bundle that was opened, those of the
  // ordinary one in it.
  std::shared_ptr<const Readable> file;
  Members members;
  // The text of manifest.json.
  std::string manifest;
  // What the readable manifest of an encrypted bundle said, once it is opened.
  std::optional<TargetSpec> readable_target;

  bool encrypted() const { return members.count(kSealedManifest) != 0; }
  // The readable manifest of an encrypted bundle, held against the members. Throws Failure.
  SealHeader seal_header() const;
  // The manifest of a bundle that is not encrypted, held against the members. Throws Failure.
  Manifest parsed() const;

  Failure damaged(const std::string& member, const std::string& what) const;

  // What `read` returns; where it finds something malformed, the member is damaged.
  template <typename Read>
  auto reading(const std::string& member, Read read) const {
    try {
      return read();
    } catch (const Malformed& error) {
      throw damaged(member, error.what());
    }
  }
};

// The ordinary bundle in a file: of a fat one the best variant for this device, of an encrypted one what is in it. Where
// keys are trusted, one of them has signed it. Throws Failure.
Part open_part(const std::string& path, const Access& access);

}  // namespace whet::internal
