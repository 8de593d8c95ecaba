"""How the page looks, and the little script that sorts its tables."""

from __future__ import annotations

import base64
import hashlib

from vexport.bench.page.svg import chart_css

_PAGE = """
:root{color-scheme:light dark;--surface:#fff;--raised:#f6f7f9;--ink:#1b2028;--muted:#59626f;--line:#dfe3e8;
--link:#0b63a8;--good:#006b4f;--good-soft:#e2f4ed;--bad:#a84300;--bad-soft:#fdeee2;--doubt:#59626f;--doubt-soft:#eef0f3;--edge:#0003}
@media screen and (prefers-color-scheme:dark){:root{--surface:#14181f;--raised:#1b2129;--ink:#e8ebf0;--muted:#a3adba;
--line:#2f3742;--link:#7cc0f5;--good:#5fdcb3;--good-soft:#11322a;--bad:#ffab6b;--bad-soft:#3a2414;--doubt:#b4bdc9;
--doubt-soft:#242b35;--edge:#0009}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--surface);color:var(--ink);font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,
Helvetica,Arial,sans-serif;overflow-wrap:break-word}
main,header,footer{max-width:1080px;margin:0 auto;padding:0 20px}
header{padding-top:40px}
h1{font-size:clamp(1.45rem,1.1rem + 1.7vw,2.15rem);line-height:1.2;margin:.2em 0 .5em;letter-spacing:-.015em;
text-wrap:balance}
h2{font-size:1.35rem;line-height:1.3;margin:3rem 0 .6rem;padding-top:1rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:2rem 0 .4rem}
p{margin:.5rem 0;max-width:72ch}
a{color:var(--link)}
.over{color:var(--muted);font-size:.875rem;margin:0}
.answer{font-size:1.15rem;border-left:5px solid;padding:.7rem 1.1rem;margin:1rem 0;border-radius:0 8px 8px 0;
max-width:none}
.answer strong{font-size:1.8rem;line-height:1.2;display:block}.answer>span{display:block;margin-top:.25rem}
.faster{border-color:var(--good);background:var(--good-soft)}.faster strong,.faster .badge{color:var(--good)}
.slower{border-color:var(--bad);background:var(--bad-soft)}.slower strong,.slower .badge{color:var(--bad)}
.open{border-color:var(--doubt);background:var(--doubt-soft)}.open strong,.open .badge{color:var(--doubt)}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(100%,300px),1fr));margin:.6rem 0 1.4rem;
padding:0;list-style:none}
.cards li{border-radius:8px;border-left-width:4px;border-left-style:solid;padding:.7rem .9rem;font-size:.93rem}
.cards b{display:block}
.badge{font-weight:700;display:block;font-size:1.02rem}
.doubt{display:block;color:var(--muted);font-size:.85rem;margin-top:.3rem}
.notice{border:1px solid var(--bad);border-radius:8px;padding:.6rem .9rem;color:var(--bad)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;padding:0;margin:1rem 0;list-style:none;font-size:.93rem}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px;margin:.7rem 0}
.scroll:focus-visible,button:focus-visible,a:focus-visible,summary:focus-visible{outline:2px solid var(--link);
outline-offset:2px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.5rem .55rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--line)}
tbody tr:last-child>*{border-bottom:0}
th{font-weight:600}
thead tr:first-child td{background:var(--raised)}thead th.t[scope=colgroup]{white-space:nowrap}
thead th{background:var(--raised);vertical-align:bottom;font-size:.82rem;line-height:1.3}
.t{text-align:left}
tbody th{position:sticky;left:0;background:var(--surface);text-align:left;white-space:nowrap}
thead tr:last-child th:first-child{position:sticky;left:0}
td,.nb{white-space:nowrap}
td small{display:block;color:var(--muted);font-size:.8rem;white-space:normal}
td.w{white-space:normal;min-width:10.5rem;text-align:left}
td small.faster,td small.slower{background:none;font-weight:600}
small.faster{color:var(--good)}small.slower{color:var(--bad)}
.pub{min-width:5.5rem;border-left:1px solid var(--line);color:var(--muted);font-style:italic}
.pub+.pub{min-width:5.5rem;border-left:0}
td.fail{text-align:left;color:var(--bad);white-space:normal}
.unstable{color:var(--bad);font-weight:600}
th button{font:inherit;color:inherit;background:none;border:0;padding:0;cursor:pointer;text-align:inherit}
th button::after{content:"\\a0\\2195";color:var(--muted);font-weight:400}
th[aria-sort=ascending] button::after{content:"\\a0\\2191";color:inherit}
th[aria-sort=descending] button::after{content:"\\a0\\2193";color:inherit}
figure{margin:1.6rem 0 2.2rem;break-inside:avoid}
figure h3{margin-top:0}
.plot{overflow-x:auto}
.plot,.scroll{background:linear-gradient(90deg,var(--surface) 40%,transparent) 0 0/36px 100% no-repeat local,
linear-gradient(270deg,var(--surface) 40%,transparent) 100% 0/36px 100% no-repeat local,
linear-gradient(90deg,var(--edge),transparent) 0 0/14px 100% no-repeat scroll,
linear-gradient(270deg,var(--edge),transparent) 100% 0/14px 100% no-repeat scroll}
.plot svg{display:block;width:100%;max-width:860px;min-width:580px;height:auto}
figcaption{color:var(--muted);font-size:.88rem;max-width:72ch;margin-top:.4rem}
details{margin:.8rem 0}
summary{cursor:pointer;color:var(--link)}
pre{background:var(--raised);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;overflow-x:auto;
font-size:.88rem}
.facts{width:auto}.facts th,.facts td{text-align:left;white-space:normal;overflow-wrap:anywhere;padding:.3rem .7rem}
.facts th{font-weight:400;color:var(--muted);position:static}
li{max-width:76ch;margin:.25rem 0}.cards li{max-width:none;margin:0}
footer{color:var(--muted);font-size:.85rem;padding-top:2rem;padding-bottom:3rem}
@media(max-width:600px){main,header,footer{padding-left:14px;padding-right:14px}header{padding-top:22px}
th,td{padding:.4rem .5rem}ul{padding-left:1.2rem}tbody th{white-space:normal;max-width:11rem;min-width:7.9rem}}
@media print{body{font-size:10pt}.scroll,.plot,pre{overflow:visible;border:0}.plot svg{min-width:0}nav{display:none}
table,thead th,td small{font-size:7pt}th,td,td small,thead th[scope=colgroup]{white-space:normal}
th,td{padding:.2rem .3rem}td.w{min-width:0}.plot,.scroll{background:none}
.answer,.cards li,thead th{print-color-adjust:exact;-webkit-print-color-adjust:exact}h2,h3{break-after:avoid}
tr{break-inside:avoid}th button::after{content:""!important}}
"""

# Sorting only; the page is whole without it. Cells say what they sort by in data-v; what is not known goes last.
SCRIPT = """
document.querySelectorAll('table[data-sort]').forEach(function(table){
  var heads=table.querySelectorAll('thead tr:last-child th'),body=table.tBodies[0];
  if(body.rows.length<2)return;
  heads.forEach(function(head,place){
    var button=document.createElement('button');
    button.type='button';button.append.apply(button,[].slice.call(head.childNodes));head.append(button);
    button.addEventListener('click',function(){
      var up=head.getAttribute('aria-sort')!=='ascending';
      heads.forEach(function(other){other.removeAttribute('aria-sort')});
      head.setAttribute('aria-sort',up?'ascending':'descending');
      function key(row){var cell=row.querySelector('[data-c="'+place+'"]');return cell?cell.dataset.v:''}
      [].slice.call(body.rows).sort(function(a,b){
        var x=key(a)||'',y=key(b)||'';
        if(!x||!y)return (x?0:1)-(y?0:1);
        var by=isNaN(x)||isNaN(y)?x.localeCompare(y):x-y;
        return up?by:-by;
      }).forEach(function(row){body.append(row)});
    });
  });
});
"""


def style() -> str:
    """The style sheet, without line breaks."""
    return "".join(line for line in _PAGE.splitlines()) + chart_css()


def policy() -> str:
    """What the page may load: nothing; of scripts only its own may run."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    allowed = f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
