// What nginx does with a token. Below constants with the keys, which the harness writes above it.

function der(pem) {
    const lines = pem.split('\n').filter((line) => line && !line.startsWith('-'));
    return Buffer.from(lines.join(''), 'base64');
}

// Tokens that were good, where this version can keep them.
const known = ngx.shared && ngx.shared.tokens;

async function isGood(bearer) {
    if (known && known.get(bearer)) {
        return true;
    }
    const parts = bearer.split('.');
    if (parts.length !== 3) {
        return false;
    }
    const kind = KINDS[JSON.parse(Buffer.from(parts[0], 'base64url').toString()).alg];
    if (!kind) {
        return false;
    }
    const claims = JSON.parse(Buffer.from(parts[1], 'base64url').toString());
    if (claims.iss !== 'https://issuer.test' || claims.aud !== 'orders-api' || claims.exp < Date.now() / 1000) {
        return false;
    }
    const key = await crypto.subtle.importKey('spki', der(kind.key), kind.as, false, ['verify']);
    const signature = Buffer.from(parts[2], 'base64url');
    const good = await crypto.subtle.verify(kind.by, key, signature, Buffer.from(parts[0] + '.' + parts[1]));
    if (good && known) {
        // Until it ends, in milliseconds.
        known.set(bearer, '1', Math.floor(claims.exp * 1000 - Date.now()));
    }
    return good;
}

async function check(r) {
    const header = r.headersIn.Authorization;
    let good = false;
    if (header && header.startsWith('Bearer ')) {
        try {
            good = await isGood(header.slice(7));
        } catch (e) {
            good = false;
        }
    }
    r.return(good ? 204 : 401);
}

export default { check };
