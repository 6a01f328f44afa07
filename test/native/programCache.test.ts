/**
 * The on-disk cache of compiled programs: which files it trusts, and where it is.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import { execFileSync } from "node:child_process"
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync
} from "node:fs"
import { join } from "node:path"
import { cacheFolder, ProgramCache } from "../../src/layers/native/ProgramCache.ts"
import { logged } from "../support/stubDriver.ts"
import { makeFolder } from "../support/stubNvrtc.ts"

const key = "a".repeat(64)

const output = { image: new Uint8Array([1, 2, 3]), log: "log", loweredNames: new Map([["add<float>", "_Z3add"]]) }

interface Place {
  readonly folder: string
  /** The file of the key. */
  readonly path: string
  readonly cache: ProgramCache
}

/** A cache that holds the output. */
const makePlace = Effect.gen(function*() {
  const folder = join(makeFolder(), "cache")
  const cache = new ProgramCache(folder, 1e9)
  yield* cache.write(key, output)
  const place: Place = { folder, path: join(folder, `${key}.program`), cache }
  assert.deepStrictEqual(yield* cache.read(key), output)
  return place
})

/** What a read logs at debug level. It must find nothing, quickly. */
const missesWith = (cache: ProgramCache) =>
  Effect.gen(function*() {
    const read = Effect.provideService(Effect.timeout(cache.read(key), 2000), References.MinimumLogLevel, "Debug")
    const { lines, result } = yield* logged(read)
    assert.isUndefined(result)
    return lines.join("\n")
  })

/** Runs an effect as if the process belonged to another user than its files. */
const asOther = <A, E>(effect: Effect.Effect<A, E>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const real = process.geteuid!
      process.geteuid = () => real() + 12_345
      return real
    }),
    () => effect,
    (real) =>
      Effect.sync(() => {
        process.geteuid = real
      })
  )

describe("a file is not trusted", () => {
  const spoiled: ReadonlyArray<readonly [string, (place: Place) => void, string]> = [
    [
      "that others can write to",
      ({ path }) => chmodSync(path, 0o622),
      "the file is writable for other users (mode 622)"
    ],
    ["that the group can write to", ({ path }) => chmodSync(path, 0o660), "the file is writable for other users"],
    [
      "in a folder that others can write to",
      ({ folder }) => chmodSync(folder, 0o777),
      "the folder is writable for other"
    ],
    ["in a folder like /tmp", ({ folder }) => chmodSync(folder, 0o1777), "the folder is writable for other users"],
    ["that is a FIFO", ({ path }) => {
      rmSync(path)
      execFileSync("mkfifo", ["-m", "600", path])
    }, "not a plain file"],
    ["that is a folder", ({ path }) => {
      rmSync(path)
      mkdirSync(path)
    }, "not a plain file"],
    ["that is a link to a program", ({ folder, path }) => {
      const elsewhere = join(folder, "elsewhere")
      renameSync(path, elsewhere)
      symlinkSync(elsewhere, path)
    }, "ELOOP"],
    ["that is a link to an endless device", ({ path }) => {
      rmSync(path)
      symlinkSync("/dev/zero", path)
    }, "ELOOP"],
    ["that is huge", ({ path }) => truncateSync(path, 2 ** 40), `the file has ${2 ** 40} bytes`]
  ]
  for (const [what, spoil, words] of spoiled) {
    it.live(what, () =>
      Effect.gen(function*() {
        const place = yield* makePlace
        spoil(place)
        assert.include(yield* missesWith(place.cache), words)
      }))
  }

  it.live("of another user", () =>
    Effect.gen(function*() {
      const { cache, path } = yield* makePlace
      assert.include(yield* asOther(missesWith(cache)), "belongs to another user")
      assert.isTrue(existsSync(path))
    }))

  // Only root can give a file away.
  it.live.runIf(process.geteuid?.() === 0)("of another user, in the user's own folder", () =>
    Effect.gen(function*() {
      const { cache, path } = yield* makePlace
      chownSync(path, 12_345, 12_345)
      assert.include(yield* missesWith(cache), "the file belongs to another user (12345)")
      yield* cache.write(key, output)
      assert.deepStrictEqual(yield* cache.read(key), output)
    }))

  const replaced: ReadonlyArray<readonly [string, (path: string) => void]> = [
    ["a FIFO", (path) => execFileSync("mkfifo", [path])],
    ["a link", (path) => symlinkSync("/dev/zero", path)],
    ["a file that others can write to", (path) => {
      writeFileSync(path, "")
      chmodSync(path, 0o666)
    }]
  ]
  for (const [what, put] of replaced) {
    it.live(`and is replaced by the next compilation: ${what}`, () =>
      Effect.gen(function*() {
        const { cache, path } = yield* makePlace
        rmSync(path)
        put(path)
        yield* missesWith(cache)
        yield* cache.write(key, output)
        assert.deepStrictEqual(yield* cache.read(key), output)
        assert.isTrue(lstatSync(path).isFile())
      }))
  }
})

describe("a folder", () => {
  it.live("is created for its user alone, with those above it", () =>
    Effect.gen(function*() {
      const above = join(makeFolder(), "above")
      const cache = new ProgramCache(join(above, "cache"), 1e9)
      yield* cache.write(key, output)
      for (const made of [above, join(above, "cache")]) assert.strictEqual(statSync(made).mode & 0o777, 0o700)
    }))

  it.live("that others can write to, or of another user, is not written to", () =>
    Effect.gen(function*() {
      const folder = makeFolder()
      const cache = new ProgramCache(folder, 1e9)
      yield* asOther(cache.write(key, output))
      chmodSync(folder, 0o777)
      yield* cache.write(key, output)
      assert.deepStrictEqual(readdirSync(folder), [])
    }))

  it.live("may be a link", () =>
    Effect.gen(function*() {
      const { folder } = yield* makePlace
      const link = join(makeFolder(), "link")
      symlinkSync(folder, link)
      assert.deepStrictEqual(yield* new ProgramCache(link, 1e9).read(key), output)
    }))

  it.live("is pruned of plain files only", () =>
    Effect.gen(function*() {
      const folder = makeFolder()
      mkdirSync(join(folder, "folder.program"))
      symlinkSync("/dev/zero", join(folder, "link.program"))
      writeFileSync(join(folder, "kept.txt"), "kept")
      linkSync(join(folder, "kept.txt"), join(folder, "old.program"))
      const { lines } = yield* logged(
        Effect.provideService(new ProgramCache(folder, 0).write(key, output), References.MinimumLogLevel, "Debug")
      )
      assert.deepStrictEqual(lines, [])
      assert.deepStrictEqual(readdirSync(folder).sort(), ["folder.program", "kept.txt", "link.program"])
    }))
})

describe("the default folder", () => {
  it("ignores relative and empty paths in the environment", () => {
    for (const named of ["", "relative", "./relative"]) {
      assert.strictEqual(
        cacheFolder({ XDG_CACHE_HOME: named, HOME: "/home/me" }, "linux"),
        "/home/me/.cache/effect-cuda"
      )
      assert.strictEqual(cacheFolder({ XDG_CACHE_HOME: named, HOME: named }, "linux"), undefined)
      assert.strictEqual(cacheFolder({ HOME: named }, "linux"), undefined)
    }
    assert.strictEqual(cacheFolder({ XDG_CACHE_HOME: "/cache", HOME: "" }, "linux"), "/cache/effect-cuda")
  })
})
